"""HTTP: middleware, routes, bodies, errors, OpenAPI document, the page, and the server process."""
