"""Contract suites for components: losses, samplers, towers, indexes and features.

Each function takes the class or the config of a component, runs every check that candid's own
components pass, and raises ``AssertionError`` with the broken promise. Run it in a test of your
package:

    from candid.testing import check_loss

    def test_my_loss_keeps_the_contract():
        check_loss(MyLoss)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from candid.testing.features import check_feature
    from candid.testing.index import check_index
    from candid.testing.losses import check_loss
    from candid.testing.samplers import check_sampler
    from candid.testing.towers import check_tower

_MODULES: Final = {
    "check_feature": "features",
    "check_index": "index",
    "check_loss": "losses",
    "check_sampler": "samplers",
    "check_tower": "towers",
}

__all__ = ["check_feature", "check_index", "check_loss", "check_sampler", "check_tower"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'candid.testing' has no attribute {name!r}")
    return getattr(import_module(f"candid.testing.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
