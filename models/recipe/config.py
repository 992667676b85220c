"""Recipes: everything that a retraining depends on, immutable and checked before anything is trained.

Order of precedence: the defaults below < the recipe file < overrides ("train.epochs=3"). Plain dataclasses instead of
pydantic, because `models` runs with only torch, timm, numpy, pyarrow and onnx.
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
from models.recipe.learning import LEVELS, Augment, Distil, Loss, Member, Meta, Positive, Share, Train, content
from models.recipe.registry import Range, closest
from models.recipe.tables import build, set_key

RECIPES = Path(__file__).parents[1] / "recipes"


PRECISIONS = ("fp16", "bf16", "int8")  # beside float32
# The names in models.cleaning.rules, which may import this package, but not the other way round. A test compares them.
Rule = Literal[
    "report", "self_confidence", "log_margin", "confident_learning", "neighbours", "product", "linear", "posterior"
]


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Cleaning rounds: each gets out-of-sample probabilities and then decides on all given labels afresh."""

    rounds: Annotated[int, Range(0, 10)] = 1  # upper limit
    stop_share: Share = 0.005  # stop after a round that changes the decisions on a smaller share of the photos
    member: Annotated[int, Range(0)] = 0  # member whose network gives the probabilities
    folds: Annotated[int, Range(2, 20)] = 3
    epochs: Positive = 12  # lightly trained networks find label issues better
    rule: Rule = "log_margin"
    params: dict = field(default_factory=dict)  # parameters of the rule
    use: Literal["drop", "weigh"] = "drop"  # weigh: photos with a label issue stay, weighted by their label quality
    relabel: Share = 0.0  # replace a label issue if another class has at least this probability; 0: never
    budget: Share = 1.0  # at most this share of the training photos becomes a label issue
    floor_share: Share = 0.3  # a class keeps at least this share of its photos
    floor_count: Annotated[int, Range(1)] = 5  # and at least this many
    correct: bool = False  # each round estimates the label noise; later trainings use it in forward correction
    validation: bool = False  # also drop validation photos with a label issue; test photos are never touched

    @property
    def asks_embeddings(self) -> bool:
        """True if cleaning compares the embeddings of photos."""
        return self.rule in ("neighbours", "product", "linear", "posterior") or self.relabel > 0 or self.correct

    @property
    def asks_names(self) -> bool:
        """True if cleaning estimates the classes of photos, to which vectors of names contribute."""
        return self.rule == "posterior" or self.relabel > 0 or self.correct

    @property
    def weighing(self) -> list[Any]:
        """Settings that a training on downweighted photos depends on beside its data; empty if they are dropped."""
        weighs = [self.use, self.floor_share, self.floor_count] if self.use == "weigh" else []
        return [*weighs, *(["correct"] if self.correct else [])]


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """More epochs at a larger size, after training and before re-balancing."""

    epochs: Annotated[int, Range(0)] = 0  # 0: no fine-tuning
    enlarge: Annotated[float, Range(1, 4)] = 1.5  # factor of the member's size
    lr: Annotated[float, Range(0, open_low=True)] = 2e-4
    learn: Literal["all", "norms", "head"] = "all"  # "norms": norm layers of the backbone and the head (FixRes)
    best_photos: Annotated[int, Range(0)] = 0  # best-scored photos of a class that it draws from; 0: all

    def resized(self, member: Member) -> Member:
        """The member with its size after fine-tuning."""
        return dataclasses.replace(member, size=round(member.size * self.enlarge))

    def settings(self, train: Train) -> Train:
        """Settings of fine-tuning: those of the training, with photos drawn as in its last epoch."""
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
    best_photos: Annotated[int, Range(0)] = 0  # best-scored photos of a class for cRT, LWS and NCM; 0: all
    tau_max: Annotated[float, Range(0, 4)] = 2.0  # 0 switches tau-normalisation off
    adjust_max: Annotated[float, Range(0, 4)] = 1.5  # 0 switches logit adjustment off
    tau_step: Annotated[float, Range(0.01, 1)] = 0.05

    def __post_init__(self) -> None:
        if self.method in ("lws", "crt") and not self.epochs:
            raise ConfigError(
                f'balance.epochs: 0, but balance.method = "{self.method}" has to train; set 10, or another method'
            )

    @property
    def needs_training_photos(self) -> bool:
        """True if the method learns from training photos; the others need selection photos only."""
        return self.method in ("best", "blend", "ncm", "lws", "crt")


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Weights of the members in the mean of their probabilities, chosen on selection photos."""

    method: Literal["uniform", "weighted", "greedy"] = "uniform"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Selection photos, and the confidence in the validation gain at which a step is kept."""

    photos: str = ""  # a file of ids whose labels are trusted; "": all validation photos
    confidence: Annotated[float, Range(0, 1, open_high=True)] = 0.9  # one-sided; 0 keeps every step without a check

    @property
    def file(self) -> str:
        """Hash of the file that `photos` names; "" if there is no such file."""
        return content(self.photos)


@dataclass(frozen=True, kw_only=True)
class Export:
    """The exported graph."""

    input_size: Annotated[int, Range(16, 2048)] = 160
    enlarge: tuple[Annotated[float, Range(1, 4)], ...] = (1.25,)  # several: one is chosen on selection photos
    crops: Annotated[int, Range(1, 10)] = 10  # 1, 2, 5 or 10
    keep: Positive = 10  # best classes of a member that enter the mean
    top_k: Positive = 5
    accept: Annotated[float, Range(0, 1, open_low=True)] = 0.95  # share of the validation photos that `known` accepts
    reject: bool = False  # a photo that is not accepted gets no classes
    precision: Literal["fp32", "fp16", "int8"] = "fp32"  # of the backbones; fp32 if another is not accurate enough
    variants: bool = False  # make and measure every precision and number of crops
    fall: Share = 0.005  # top-1 accuracy that a lower precision may cost

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions to make beside the float32 graph."""
        return PRECISIONS if self.variants else tuple({self.precision} - {"fp32"})

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of crops to make beside the chosen one."""
        return LEVELS if self.variants else ()

    def __post_init__(self) -> None:
        if not self.enlarge:
            raise ConfigError("export.enlarge: the list is empty; set 1.25, or several ratios to choose from")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Limits for promotion; the first four and `enrol` are accuracy that may be lost on the same test photos."""

    mean_class: Annotated[float, Range(-1, 1)] = 0.0
    head: Annotated[float, Range(-1, 1)] = 0.05
    middle: Annotated[float, Range(-1, 1)] = 0.05
    tail: Annotated[float, Range(-1, 1)] = 0.02
    confidence: Annotated[float, Range(0.5, 1, open_high=True)] = 0.8  # at which a loss of accuracy is refused
    above_chance: Annotated[float, Range(-1, 1)] = 0.01  # top-1 accuracy above a guess, beyond doubt; below 0: no bar
    class_floor: Share = 0.1  # accuracy of each class; 0: no floor
    decided_away: Share = 0.5  # share of a class's training photos that cleaning may remove
    latency_ms: Annotated[float, Range(0)] = 0.0  # per photo on one CPU thread; 0: no budget, nothing is timed
    enrol: Annotated[float, Range(-1, 1)] = 0.01  # mean over the other classes, when one product is enrolled


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete description of a retraining."""

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
    distil: Distil = Distil()
    proof: Proof = Proof()
    export: Export = Export()
    gate: Gate = Gate()

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("members: a recipe needs at least one; add a [[members]] table")
        if self.export.crops not in LEVELS:
            raise ConfigError(f"export.crops: {self.export.crops} is not one of 1, 2, 5, 10; set one of them")
        if self.export.keep < self.export.top_k:
            raise ConfigError(
                f"export.keep: {self.export.keep} classes cannot fill export.top_k = {self.export.top_k} answers; "
                "raise it"
            )
        if self.clean.member >= len(self.members):
            raise ConfigError(
                f"clean.member: {self.clean.member}, but the recipe has {len(self.members)} members, counted from 0; "
                "set a smaller number"
            )
        if all(own.train.get("backbone_lr_scale", self.train.backbone_lr_scale) == 0 for own in self.members):
            self._check_frozen()
        if self.augment.mixes and self.meta.photos:
            raise ConfigError(
                "meta.photos: cannot be combined with mixed photos; set augment.mixup=0 and augment.cutmix=0"
            )
        if self.meta.photos and self.train.shard:
            raise ConfigError(
                "train.shard: true does not work with meta.photos, which needs whole parameters; set shard=false"
            )
        for member, own in enumerate(self.members):
            if own.name_vectors:
                self._check_names(member)
            if own.head == "arcface" and own.train.get("har", self.train.har):
                raise ConfigError('train.har: works with members.head = "linear" only; set har=0, or that head')
            if own.loss or own.train:
                self.of(member)

    def _check_frozen(self) -> None:
        """Refuses augmentations without effect: a frozen backbone sees whole photos and their mirror images, once."""
        for name in ("hue_deg", "flip_vertical", "blur", "holes", "cutmix"):
            if getattr(self.augment, name) != getattr(Augment, name):
                raise ConfigError(
                    f"augment.{name}: has no effect on a frozen backbone (train.backbone_lr_scale=0), whose features "
                    "are computed once; leave it out"
                )

    def _check_names(self, member: int) -> None:
        """Refuses vectors of names that no features can be compared with, or that cleaning would not read."""
        key = f"members.{member}.name_vectors"
        for number in (member, self.clean.member):
            if not self._is_frozen(number):
                raise ConfigError(
                    f"{key}: names can be compared with features of a frozen backbone only, which all folds share, and that of "
                    f"members.{number} is not frozen; set members.{number}.train.backbone_lr_scale=0 and its weights, or leave "
                    "name_vectors out"
                )
        if self.clean.rounds and not self.clean.asks_names:
            raise ConfigError(
                f'{key}: the rule clean.rule = "{self.clean.rule}" does not look at names; set clean.rule="posterior", or leave '
                "name_vectors out"
            )

    def _is_frozen(self, member: int) -> bool:
        own = self.members[member]
        return own.train.get("backbone_lr_scale", self.train.backbone_lr_scale) == 0 and own.weights != ""

    @property
    def other_encoders(self) -> list[int]:
        """Members with a frozen backbone of their own, other than that of `clean.member`, that cleaning can look through."""
        known, found = {_encoder(self.members[self.clean.member])}, []
        for number, member in enumerate(self.members):
            if self._is_frozen(number) and _encoder(member) not in known:
                known.add(_encoder(member))
                found.append(number)
        return found

    @property
    def name_vectors(self) -> list[str]:
        """Files of vectors of names, by encoder: that of `clean.member`, then `other_encoders`; "" for none, [] if all have none.

        A file belongs to every member with the same backbone, weights and size.
        """
        files: dict[str, str] = {}
        for member in self.members:
            if member.name_vectors:
                files.setdefault(_encoder(member), member.name_vectors)
        encoders = [self.clean.member, *self.other_encoders] if files else []
        return [files.get(_encoder(self.members[number]), "") for number in encoders]

    def of(self, member: int) -> Recipe:
        """Recipe with one member only, in which the member's own loss and training keys replace those of the recipe.

        It has no vectors of names, because no training reads them.

        Raises:
            ConfigError: one of these keys is unknown or out of range; the message names members.<member>.<key>.
        """
        own, where = self.members[member], f"members.{member}."
        try:
            loss = build(Loss, {"name": self.loss.name} | own.loss, f"{where}loss.") if own.loss else self.loss
            train = build(Train, vars(self.train) | own.train, f"{where}train.")
        except ConfigError as error:  # a check of several keys does not name the member
            raise ConfigError(f"{where}{str(error).removeprefix(where)}") from None
        plain = dataclasses.replace(own, data="cleaned", loss={}, train={}, name_vectors="")
        clean = dataclasses.replace(self.clean, member=0)
        augment = self.augment if train.backbone_lr_scale else self.augment.of_features
        return dataclasses.replace(self, members=(plain,), loss=loss, train=train, augment=augment, clean=clean)


def _encoder(member: Member) -> str:
    """Digest of what the features of a frozen backbone depend on."""
    return digest(member.backbone, member.args, member.mean, member.std, member.size, member.start)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with CleanShelf, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with this name or path, with overrides such as "train.epochs=3" or "members.0.size=64".

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
        unknown = f"no recipe {name!r}{closest(name, recipe_names())}; known: {', '.join(recipe_names())}"
        raise ConfigError(f"{unknown}; or give the path of an existing .toml file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML in UTF-8 ({error}); models/recipes/ has examples") from None


def from_dict(tables: Mapping[str, Any]) -> Recipe:
    """The recipe that plain tables describe, as `to_dict` returns them."""
    recipe = build(Recipe, tables)
    assert isinstance(recipe, Recipe)
    return recipe


def to_dict(config: Any) -> dict[str, Any]:
    """Plain tables of a recipe or a part of it, fit for JSON."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))


def training_inputs(recipe: Recipe, *, network: Member | None = None, train: Train | None = None) -> list[Any]:
    """Everything in a member's own recipe (`Recipe.of`) that its training depends on, for `digest`.

    Files count by content: a new file under the same name makes another training.

    Args:
        network, train: the member and the training settings, if they are not those of the recipe.
    """
    member = network or recipe.members[0]
    settings = (train or recipe.train).decisive
    files = [member.start, content(settings.state), content(settings.photo_weights)]
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
    """Hash, 16 hex digits, of recipe parts, strings and numbers: the key of a cached result."""
    plain = [to_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
