"""A recipe: everything that learning depends on, frozen and checked before a GPU is booked.

Order of precedence: the defaults below < the recipe file < overrides ("train.epochs=3"). Dataclasses rather than
pydantic, because models runs with only torch, timm, numpy, pyarrow and onnx.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from models.errors import ConfigError
from models.recipe.learning import Augment, Loss, Member, Meta, Positive, Share, Train, content
from models.recipe.registry import Range, closest
from models.recipe.tables import build, set_key

RECIPES = Path(__file__).parents[1] / "recipes"


PRECISIONS = ("fp16", "bf16", "int8")  # beside float32
LEVELS = (1, 2, 5, 10)  # crops of a photo
Rule = Literal[
    "report", "self_confidence", "log_margin", "confident_learning", "neighbours", "product", "linear", "posterior"
]


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Cleaning rounds: out-of-sample probabilities, then decisions on all labels anew."""

    rounds: Annotated[int, Range(0, 10)] = 1  # at most
    stop_share: Share = 0.005  # no further round once a round changes the decisions on fewer of the photos
    member: Annotated[int, Range(0)] = 0  # the member whose network gives the probabilities
    folds: Annotated[int, Range(2, 20)] = 3
    epochs: Positive = 12  # lightly trained finds errors better
    rule: Rule = "log_margin"  # of models.cleaning
    params: dict = field(default_factory=dict)  # the rule's own
    use: Literal["drop", "weigh"] = "drop"  # weigh: disbelieved photos stay, and each counts by its score
    relabel: Share = 0.0  # a disbelieved label is replaced where another is so certain; 0: never
    budget: Share = 1.0  # at most this share of the training photos is disbelieved
    floor_share: Share = 0.3  # a class keeps at least this share of its photos
    floor_count: Annotated[int, Range(1)] = 5  # and at least so many
    correct: bool = False  # each round estimates what is given for what, and later trainings learn through it

    @property
    def asks_embeddings(self) -> bool:
        """Whether photos are compared."""
        return self.rule in ("neighbours", "product", "linear", "posterior") or self.relabel > 0 or self.correct

    @property
    def weighing(self) -> list[Any]:
        """What a training on doubted labels depends on beside its data; nothing where they are dropped."""
        weighs = [self.use, self.floor_share, self.floor_count] if self.use == "weigh" else []
        return [*weighs, *(["correct"] if self.correct else [])]


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """More epochs at a larger size, after training and before balancing."""

    epochs: Annotated[int, Range(0)] = 0  # 0: none
    enlarge: Annotated[float, Range(1, 4)] = 1.5  # to this times the member's size
    lr: Annotated[float, Range(0, open_low=True)] = 2e-4
    learn: Literal["all", "norms", "head"] = "all"  # "norms": the backbone's norms and the head (FixRes)
    best_photos: Annotated[int, Range(0)] = 0  # of a class that it learns from, the best-scored; 0: all

    def resized(self, member: Member) -> Member:
        """The member as it leaves fine-tuning."""
        return dataclasses.replace(member, size=round(member.size * self.enlarge))

    def settings(self, train: Train) -> Train:
        """Of the further epochs: those of the training, with photos drawn as in its last epoch."""
        even = train.progressive or train.balanced_epochs > 0
        best = self.best_photos > 0 or train.best_epochs > 0
        return dataclasses.replace(
            train, epochs=self.epochs, lr=self.lr, start_size=1.0, schedule="cosine", progressive=False,
            balanced_epochs=self.epochs * even, best_epochs=self.epochs * best,
            best_photos=self.best_photos or train.best_photos, soup_epochs=min(train.soup_epochs, self.epochs),
            backbone_lr_scale=0.0 if self.learn == "head" else train.backbone_lr_scale,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Classifier re-balancing on frozen features."""

    method: Literal["best", "none", "tau", "logit_adjustment", "blend", "ncm", "lws", "crt"] = "best"
    epochs: Annotated[int, Range(0)] = 10  # of cRT and LWS; 0 tries neither
    lr: Annotated[float, Range(0, open_low=True)] = 2e-3
    best_photos: Annotated[int, Range(0)] = 0  # of a class that cRT, LWS and NCM learn from; 0: all
    tau_max: Annotated[float, Range(0, 4)] = 2.0  # 0 switches tau-normalisation off
    adjust_max: Annotated[float, Range(0, 4)] = 1.5  # 0 switches logit adjustment off
    tau_step: Annotated[float, Range(0.01, 1)] = 0.05

    def __post_init__(self) -> None:
        if self.method in ("lws", "crt") and not self.epochs:
            raise ConfigError(
                f'balance.epochs: 0, and balance.method = "{self.method}" has to learn; set 10, or another method'
            )

    @property
    def needs_training_photos(self) -> bool:
        """Whether photos are learnt from, and not only judged by."""
        return self.method in ("best", "blend", "ncm", "lws", "crt")


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """How much each member's answer counts; chosen on validation photos."""

    method: Literal["uniform", "weighted", "greedy"] = "uniform"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Which photos say whether a step pays, and how sure they must be for it to stay."""

    photos: str = ""  # a file of ids whose labels are trusted; "": the validation photos that cleaning believes
    confidence: Annotated[float, Range(0, 1, open_high=True)] = 0.9  # one-sided; 0 takes every step unasked

    @property
    def file(self) -> str:
        """Digest of what `photos` names; "" of no file."""
        return content(self.photos)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is fused into the one graph."""

    input_size: Annotated[int, Range(16, 2048)] = 160
    enlarge: tuple[Annotated[float, Range(1, 4)], ...] = (1.25,)  # several: chosen on validation photos
    crops: Annotated[int, Range(1, 10)] = 10  # 1, 2, 5 or 10
    keep: Positive = 10  # best classes of a member that take part in the mean
    top_k: Positive = 5
    accept: Annotated[float, Range(0, 1, open_low=True)] = 0.95  # share of the validation photos that `known` accepts
    reject: bool = False  # what is not accepted gets no classes
    precision: Literal["fp32", "fp16", "int8"] = "fp32"  # of the backbones in what is published, if it is offered
    variants: bool = False  # every precision and number of crops is made and measured
    fall: Share = 0.005  # of top-1, that a lower precision may cost

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that are made beside the float32 graph."""
        return PRECISIONS if self.variants else tuple({self.precision} - {"fp32"})

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of crops that are made beside the chosen one."""
        return LEVELS if self.variants else ()

    def __post_init__(self) -> None:
        if not self.enlarge:
            raise ConfigError("export.enlarge: names no ratio; set 1.25, or several to choose from")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a new model has to keep to be served; shares of accuracy are those that it may lose on the same test photos."""

    mean_class: Annotated[float, Range(-1, 1)] = 0.0
    head: Annotated[float, Range(-1, 1)] = 0.05
    middle: Annotated[float, Range(-1, 1)] = 0.05
    tail: Annotated[float, Range(-1, 1)] = 0.02
    confidence: Annotated[float, Range(0.5, 1, open_high=True)] = 0.8  # that a fall is one, for it to be refused
    class_floor: Share = 0.1  # accuracy of each class; 0: none
    decided_away: Share = 0.5  # of a class's training photos, by cleaning
    latency_ms: Annotated[float, Range(0)] = 0.0  # per photo on one thread of the CPU; 0: no budget, nothing is timed
    enrol: Annotated[float, Range(-1, 1)] = 0.01  # of the mean over the other classes, by one product that is enrolled


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A retraining, completely described."""

    name: str
    members: tuple[Member, ...] = (Member(),)
    loss: Loss = Loss()
    meta: Meta = Meta()
    train: Train = Train()
    augment: Augment = Augment()
    clean: Clean = Clean()
    finetune: Finetune = Finetune()
    balance: Balance = Balance()
    ensemble: Ensemble = Ensemble()
    proof: Proof = Proof()
    export: Export = Export()
    gate: Gate = Gate()

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("members: a recipe needs at least one; add a [[members]] table")
        if self.export.crops not in LEVELS:
            raise ConfigError(f"export.crops: {self.export.crops} is not one of 1, 2, 5, 10")
        if self.export.keep < self.export.top_k:
            raise ConfigError(
                f"export.keep: {self.export.keep} classes cannot fill export.top_k = {self.export.top_k} answers"
            )
        if self.clean.member >= len(self.members):
            raise ConfigError(f"clean.member: {self.clean.member}, but the recipe has {len(self.members)} members")
        if all(own.train.get("backbone_lr_scale", self.train.backbone_lr_scale) == 0 for own in self.members):
            self._check_frozen()
        if self.augment.mixes and self.meta.photos:
            raise ConfigError("meta.photos: learns from whole photos; set augment.mixup=0 and augment.cutmix=0")
        for member, own in enumerate(self.members):
            if own.head == "arcface" and own.train.get("har", self.train.har):
                raise ConfigError('train.har: is derived for members.head = "linear"; set har=0, or that head')
            if own.loss or own.train:
                self.of(member)

    def _check_frozen(self) -> None:
        """Of a frozen backbone features are computed once, of whole photos and their mirror images."""
        for name in ("hue_deg", "flip_vertical", "blur", "holes", "cutmix"):
            if getattr(self.augment, name) != getattr(Augment, name):
                raise ConfigError(
                    f"augment.{name}: has no effect on a frozen backbone (train.backbone_lr_scale=0), whose features are "
                    "computed once; leave it out"
                )

    def of(self, member: int) -> Recipe:
        """The recipe of one member alone, with its own loss and keys of training in their places.

        Raises:
            ConfigError: one of them is unknown or out of range; the message names members.<member>.<key>.
        """
        own, where = self.members[member], f"members.{member}."
        try:
            loss = build(Loss, {"name": self.loss.name} | own.loss, f"{where}loss.") if own.loss else self.loss
            train = build(Train, vars(self.train) | own.train, f"{where}train.")
        except ConfigError as error:  # what keys are refused together for, names no member
            raise ConfigError(f"{where}{str(error).removeprefix(where)}") from None
        plain = dataclasses.replace(own, data="cleaned", loss={}, train={})
        clean = dataclasses.replace(self.clean, member=0)
        augment = self.augment if train.backbone_lr_scale else self.augment.of_features
        return dataclasses.replace(self, members=(plain,), loss=loss, train=train, augment=augment, clean=clean)


def recipe_names() -> list[str]:
    """The recipes that ship with CleanShelf."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name (or at that path), with overrides such as "train.epochs=3" or "members.0.size=64".

    Raises:
        ConfigError: an unknown recipe, key or value; the message names the field and the file.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    tables = _read(path, name)
    for override in overrides:
        set_key(tables, override)
    try:
        return from_dict({"name": path.stem} | tables)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"no recipe {name!r}{closest(name, recipe_names())}; known: {', '.join(recipe_names())}"
        raise ConfigError(f"{what}; or give the path of a .toml file that exists") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML in UTF-8 ({error}); models/recipes/ has examples") from None


def from_dict(tables: Mapping[str, Any]) -> Recipe:
    """A Recipe from plain tables, as `to_dict` gives them."""
    recipe = build(Recipe, tables)
    assert isinstance(recipe, Recipe)
    return recipe


def to_dict(config: Any) -> dict[str, Any]:
    """Plain tables of any part of a recipe, fit for JSON."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))


def training_inputs(recipe: Recipe, *, network: Member | None = None, train: Train | None = None) -> list[Any]:
    """Everything in a member's own recipe (`Recipe.of`) that its training depends on, for `digest`.

    Files count by content: a new file under the same name makes another training.

    Args:
        network, train: the member and the training settings, if they are not those of the recipe.
    """
    member = network or recipe.members[0]
    settings = (train or recipe.train).decisive
    files = [content(path) for path in (member.weights, settings.state, settings.photo_weights)]
    parts = [
        member,
        recipe.loss,
        recipe.meta,
        settings,
        recipe.augment,
        recipe.clean.weighing,
        recipe.export.input_size,
    ]
    return [*parts, *files, recipe.meta.file, recipe.proof.file]


def digest(*parts: Any) -> str:
    """A hex name, 16 digits, of any mixture of recipe parts, strings and numbers: the key of a stage's result."""
    plain = [to_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
