"""Names: given once, found in entry points without importing them, and turned into plain JSON."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest

from ponder import objectives, policies, priors, recipes
from ponder._utils.files import write_json
from ponder._utils.registry import Plugin, Registry
from ponder.errors import ArgumentTypeError, PonderError
from tests.ponder.checks import refused

shapes: Registry[Any] = Registry("shape", "tests.shapes")


class Shape(Plugin):
    registry = shapes


@shapes.register("circle")
@dataclass(frozen=True)
class Circle(Shape):
    radius: float
    tags: tuple[str, ...] = ()


@shapes.register("pair")
@dataclass(frozen=True)
class Pair(Shape):
    parts: tuple[Shape, ...]
    outer: Shape | None = None


@shapes.register("unit")
def unit(radius: float = 1.0) -> Circle:
    return Circle(radius)


def test_names_are_sorted_and_found() -> None:
    assert shapes.names() == ["circle", "pair", "unit"]
    assert shapes.find("circle") is Circle
    assert shapes.get("circle", radius=2.0) == Circle(2.0)
    assert shapes.get("unit") == Circle(1.0)
    assert shapes.name_of(Circle) == "circle"


def test_a_name_is_given_once() -> None:
    registry: Registry[Any] = Registry("shape", "tests.shapes")
    registry.register("a")(Circle)
    assert registry.register("a")(Circle) is Circle  # a module that is imported twice
    with refused("name", "still free", "'a'", "another name"):
        registry.register("a")(Pair)
    assert registry.find("a") is Circle


CELL = """
from dataclasses import dataclass
from ponder import policies

@policies.register("from-a-cell")
@dataclass(frozen=True)
class FromACell(policies.ExitPolicy):
    threshold: float = {threshold}

    def decide(self, step, state):
        return False, state
"""


def test_a_class_that_a_notebook_cell_defines_again_replaces_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [types.ModuleType("a_notebook"), types.ModuleType("another_notebook")]
    for place in places:
        monkeypatch.setitem(sys.modules, place.__name__, place)
    notebook, other_notebook = (place.__dict__ for place in places)
    try:
        exec(CELL.format(threshold=0.1), notebook)
        first = notebook["FromACell"]
        before = first()
        exec(CELL.format(threshold=0.2), notebook)
        second = notebook["FromACell"]
        assert second is not first
        assert policies.registry.find("from-a-cell") is second
        assert policies.get("from-a-cell") == second(0.2)
        assert before.to_dict() == {"name": "from-a-cell", "threshold": 0.1}  # an instance of before is still saved
        assert type(policies.from_dict(before.to_dict())) is second
        with refused("name", "still free", "from-a-cell"):
            exec(CELL.replace("class FromACell", "class Another").format(threshold=0.3), notebook)
        with refused("name", "still free", "from-a-cell"):
            exec(CELL.format(threshold=0.3), other_notebook)
        assert policies.registry.find("from-a-cell") is second
    finally:
        policies.registry._factories.pop("from-a-cell", None)


def test_functions_inside_functions_are_no_definition_of_the_same() -> None:
    registry: Registry[Any] = Registry("shape", "tests.shapes")

    def make(radius: float) -> Any:
        return lambda: Circle(radius)

    registry.register("a")(make(1.0))
    with refused("name", "still free"):
        registry.register("a")(make(2.0))


@pytest.mark.parametrize("name", ["", "Circle", "my circle", "-a", "a-", "a--b", "a/b", "über", "a\n"])
def test_bad_names_are_refused(name: str) -> None:
    with refused("name", "lower-case", repr(name), "my-shape"):
        shapes.register(name)


@pytest.mark.parametrize("name", ["a", "a1", "my-policy", "x_y", "pkg.thing", "0"])
def test_good_names_are_accepted(name: str) -> None:
    registry: Registry[Any] = Registry("shape", "tests.shapes")
    registry.register(name)(Circle)
    assert registry.names() == [name]


def test_unknown_names_list_the_known_ones() -> None:
    for ask in (shapes.find, shapes.get):
        with refused("shape", "circle, pair, unit", "'square'", "register a shape"):
            ask("square")
    with refused("shape", "registered"):
        shapes.name_of(int)


def test_wrong_arguments_list_the_right_ones() -> None:
    with refused("arguments of shape 'circle'", "fields radius, tags", "size", type_error=True):
        shapes.get("circle", size=1)
    with refused("arguments of shape 'unit'", "parameters radius", type_error=True):
        shapes.get("unit", size=1)


def test_an_argument_error_of_the_plug_in_passes_unchanged() -> None:
    with refused("seed", "whole number", type_error=True):
        policies.get("bernoulli", seed="a")


# Plain JSON


def test_nested_plug_ins_round_trip() -> None:
    pair = Pair((Circle(1.0, ("a", "b")), Pair(())), outer=Circle(2.0))
    data = json.loads(json.dumps(pair.to_dict()))
    assert data["name"] == "pair"
    assert Shape.from_dict(data) == pair
    assert Pair.from_dict(data) == pair


def test_what_plain_json_cannot_hold_is_refused() -> None:
    with refused("radius", "plain JSON", "complex", type_error=True):
        Circle(1j).to_dict()


class Shade(StrEnum):
    DARK = "dark"


class Size(IntEnum):
    SMALL = 1


@pytest.mark.parametrize("circle", [Circle(Size.SMALL), Circle(1.0, (Shade.DARK,))], ids=["radius", "tags"])
def test_members_of_an_enum_which_come_back_as_plain_values_are_refused(circle: Circle) -> None:
    with refused("radius" if circle.tags == () else "tags", "plain JSON", "Enum", type_error=True):
        circle.to_dict()


@pytest.mark.parametrize("data", [None, "circle", {}, {"radius": 1.0}, {"name": 3}, ["name"]])
def test_data_without_a_name_are_refused(data: Any) -> None:
    with refused("data", "'name'", "to_dict()", type_error=True):
        Shape.from_dict(data)


def test_nested_data_without_a_name_are_refused() -> None:
    with refused("data", "'name'", type_error=True):
        Shape.from_dict({"name": "pair", "parts": [{"radius": 1.0}]})


def test_the_dictionary_of_another_leaf_is_refused() -> None:
    with refused("data", "Pair", "Circle", type_error=True):
        Pair.from_dict({"name": "circle", "radius": 1.0})
    with refused("shape", "'square'"):
        Shape.from_dict({"name": "square"})


# Entry points


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny installed distribution with a good plug-in, a broken one, and one that points at nothing."""
    info = tmp_path / "ponder_extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ponder-extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ponder.policies]\n"
        "extra-good = ponder_extra_good:Good\n"
        "extra-broken = ponder_extra_broken:Broken\n"
        "extra-absent = ponder_extra_good:Absent\n"
        "extra-decorated = ponder_extra_decorated:Decorated\n"
        "quantile = ponder_extra_broken:Broken\n"
        "[ponder.priors]\nextra-prior = ponder_extra_prior:Flat\n"
    )
    body = (
        "from dataclasses import dataclass\nfrom ponder import policies\n{decorator}"
        "@dataclass(frozen=True)\nclass {name}(policies.ExitPolicy):\n    level: float = 0.5\n"
        "    def decide(self, step, state):\n        return True, state\n"
    )
    (tmp_path / "ponder_extra_good.py").write_text(body.format(decorator="", name="Good"))
    decorated = body.format(decorator="@policies.register('extra-decorated')\n", name="Decorated")
    (tmp_path / "ponder_extra_decorated.py").write_text(decorated)
    (tmp_path / "ponder_extra_broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "ponder_extra_prior.py").write_text("from ponder.priors import Uniform as Flat\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (policies.ExitPolicy.registry, priors.Prior.registry):
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("ponder_extra")]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_listing_imports_nothing() -> None:
    with pytest.warns(UserWarning, match="a policy 'quantile', a name that <class .*Quantile'> has"):
        assert {"extra-good", "extra-broken", "extra-absent", "quantile"} <= set(policies.names())
    assert "extra-prior" in priors.names()
    assert not [name for name in sys.modules if name.startswith("ponder_extra")]
    with refused("policy", "extra-broken", "quantile"):
        policies.get("unheard-of")
    assert not [name for name in sys.modules if name.startswith("ponder_extra")]


@pytest.mark.usefixtures("package")
def test_a_plug_in_of_another_package_is_one_of_the_librarys() -> None:
    policy = policies.get("extra-good", level=0.25)
    assert policy.level == 0.25
    assert policy.to_dict() == {"name": "extra-good", "level": 0.25}
    assert policies.from_dict(policy.to_dict()) == policy
    assert policies.from_dict((policy | policies.LastStep()).to_dict()).policies[0] == policy
    assert priors.get("extra-prior") == priors.Uniform()


@pytest.mark.usefixtures("package")
def test_a_plug_in_may_also_use_the_decorator() -> None:
    assert policies.get("extra-decorated").to_dict()["name"] == "extra-decorated"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("extra-broken", "ModuleNotFoundError.*a_module_that_is_not_there"), ("extra-absent", "AttributeError.*Absent")],
)
def test_a_broken_package_breaks_nothing_but_its_own_name(name: str, reason: str) -> None:
    with pytest.raises(
        PonderError, match=rf"policy '{name}' comes from the entry point .*cannot be imported: {reason}"
    ):
        policies.get(name)
    assert policies.get("extra-good").level == 0.5
    assert policies.get("quantile", q=0.5) == policies.Quantile(0.5)  # a built-in name cannot be taken over
    with pytest.warns(UserWarning, match="It is ignored"):
        assert name in policies.names()


def test_a_name_that_two_packages_offer_is_nobodys(package: Path) -> None:
    other = package / "ponder_other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: ponder-other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[ponder.policies]\nextra-good = ponder_extra_decorated:Decorated\n")
    message = "'ponder-other' and .*'ponder-extra' offer a policy 'extra-good' each. Remove a package, or rename one"
    with pytest.raises(PonderError, match=message):
        policies.get("extra-good")
    with pytest.warns(UserWarning, match="offers? a policy") as caught:
        assert "extra-good" in policies.names()
    assert [warning for warning in caught if re.search(message, str(warning.message))]
    assert not [name for name in sys.modules if name.startswith("ponder_extra")]


@pytest.mark.usefixtures("package")
def test_a_class_that_an_entry_point_names_has_that_name() -> None:
    from ponder_extra_good import Good  # type: ignore[import-not-found]

    assert Good().to_dict() == {"name": "extra-good", "level": 0.5}


def test_every_registry_has_its_group() -> None:
    groups = {
        policies.ExitPolicy.registry: "ponder.policies",
        priors.Prior.registry: "ponder.priors",
        objectives.Objective.registry: "ponder.objectives",
        recipes.base.registry: "ponder.recipes",
    }
    for registry, group in groups.items():
        assert registry.group == group
        assert registry.names()
    assert issubclass(ArgumentTypeError, TypeError)


def test_a_field_called_name_would_be_read_as_another_plug_in() -> None:
    @dataclass(frozen=True)
    class Named(Shape):
        name: str = "unit"

    shapes.register("named")(Named)
    with refused("Named.name", "Rename the field"):
        Named().to_dict()


def test_two_names_for_one_place_are_two_classes() -> None:
    """A cell that defines a class twice, under two names: each is saved under its own."""
    registry: Registry[Any] = Registry("shape", "tests.shapes")
    made = [dataclass(frozen=True)(type("Square", (Shape,), {"__qualname__": "Square"})) for _ in range(2)]
    for name, kind in zip(("first", "second"), made, strict=True):
        registry.register(name)(kind)
    assert [registry.name_of(kind) for kind in made] == ["first", "second"]
    again = type("Square", (Shape,), {"__qualname__": "Square"})
    assert registry.name_of(again) == "first"  # an instance of an earlier definition


@dataclass(frozen=True)
class TowardsPrior(objectives.Objective):
    prior: priors.Prior

    def per_example(self, unrolled: Any) -> Any:
        return unrolled.losses.mean(1)


def test_a_part_of_another_registry_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = objectives.Objective.registry
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    objectives.register("towards-prior")(TowardsPrior)
    objective = 0.5 * TowardsPrior(priors.Geometric(0.2)) + objectives.FinalStep()
    told = json.loads(json.dumps(objective.to_dict()))
    assert told["objectives"][0]["prior"] == {"name": "geometric", "rate": 0.2, "registry": "ponder.priors"}
    assert objectives.from_dict(told) == objective
    assert "registry" not in json.dumps(recipes.get("palbert").to_dict())
    told["objectives"][0]["prior"]["registry"] = "nowhere"
    with refused("data", "'nowhere'"):
        objectives.from_dict(told)
    with refused("data", "NaN or infinity"):
        write_json(tmp_path / "settings.json", {"weight": float("inf")})
