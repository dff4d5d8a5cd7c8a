"""Words for titles and genres of synthetic items."""

from __future__ import annotations

GENRES = """
Drama Comedy Thriller Romance Mystery Fantasy Western Documentary Adventure Crime
Musical War Animation Horror Noir History Sport Family Travel Satire Biography Space
Courtroom Nature
""".split()  # noqa: SIM905 - a word list reads better than quotes

ADJECTIVES = """
Amber Ancient Autumn Bitter Blue Borrowed Brave Bright Broken Burning Careful Cold Copper
Crimson Crooked Distant Drifting Early Electric Empty Endless Faded Faithful Fallen Final
First Forgotten Fragile Frozen Gentle Gilded Glass Golden Green Grey Hidden Hollow Honest
Hungry Iron Ivory Last Late Little Lonely Long Lost Lucky Midnight Narrow Northern Painted
Pale Paper Patient Quiet Restless Rising Salt Scarlet Second Secret Silent Silver Sleeping
Southern Stolen Stubborn Sudden Velvet Wandering Winter
""".split()  # noqa: SIM905 - a word list reads better than quotes

NOUNS = """
Anchor Archive Arrow Atlas Bakery Balcony Bell Bridge Canary Candle Carnival Castle Cellar
Choir Clock Coast Compass Corridor Courier Crossing Crown Detective Dream Embassy Engine
Expedition Feather Ferry Field Fire Forest Fortune Garden Gate Ghost Harbour Heart Horizon
Hotel House Island Journey Kingdom Lantern Letter Library Lighthouse Locksmith Machine Map
Market Mirror Moon Mountain Neighbour Night Ocean Orchard Orchestra Painter Parade Passenger
Promise River Road Season Shadow Signal Station Stranger Summer Theatre
""".split()  # noqa: SIM905 - a word list reads better than quotes

PLACES = """
Alder Ashford Avenmoor Bellhaven Birchwood Brackwater Calder Corrane Dunmere Eastmarch
Elmsworth Fairholt Fenwick Galloway Greywick Hallow Hartsea Holloway Islemere Kestrel
Lorne Marrow Merrow Nettleham Northolt Oakhurst Orrin Penrose Quayside Ravensby Rookhill
Sable Selwick Southmere Stonebridge Tarn Thornby Valemont Westerly Wyndham
""".split()  # noqa: SIM905 - a word list reads better than quotes
