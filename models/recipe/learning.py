"""The parts of a recipe that describe how a network learns: member, loss, training loop and augmentation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from durable import sha256
from models.errors import ConfigError
from models.recipe.registry import Range

Positive = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]
LEVELS = (1, 2, 5, 10)  # numbers of crops of a photo
PRETRAINED = "pretrained"  # weights of a member: timm's own


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of the ensemble."""

    backbone: str = "resnet10t"  # any timm name
    size: Annotated[int, Range(16, 1024)] = 96  # pixels, in training and in the graph
    seed: Annotated[int, Range(0)] = 0
    weights: str = ""  # to start from: "pretrained" for timm's own, or a file; "": random weights
    weights_sha256: str = ""  # of the file that they are in; a run fills it in, and its trainings demand it
    name_vectors: str = (
        ""  # a Parquet file: vectors of the names of classes, by the text tower that belongs to the backbone
    )
    args: dict = field(default_factory=dict)  # passed to timm.create_model, e.g. {pad_type = "same"}
    mean: tuple[float, ...] = ()  # of the normalisation, RGB in [0, 1]; (): timm's values for the backbone
    std: tuple[float, ...] = ()
    data: Literal["cleaned", "delivered"] = "cleaned"  # labels to learn from
    loss: dict = field(default_factory=dict)  # name and params instead of those of [loss]
    train: dict = field(default_factory=dict)  # keys that replace those of [train]
    head: Literal["linear", "arcface"] = "linear"
    margin_rad: Annotated[float, Range(0, 1.5)] = 0.3  # arcface: added to the angle to the label
    scale: Annotated[float, Range(0, open_low=True)] = 16.0  # arcface: factor of the cosines
    centres: Annotated[int, Range(1, 10)] = 1  # arcface: sub-centres of a class

    def __post_init__(self) -> None:
        if self.centres > 1 and self.head != "arcface":
            raise ConfigError(
                f'members.centres: {self.centres}, but members.head = "{self.head}" has one; set head="arcface", '
                "or leave centres out"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ConfigError(
                    f"members.{name}: {getattr(self, name)} does not have three values; give red, green and blue"
                )
        if 0 in self.std:
            raise ConfigError(
                f"members.std: {self.std} contains 0, but pixels are divided by it; leave std out for timm's values"
            )

    @property
    def start(self) -> str:
        """Hash of the weights that a training starts from; "" for random weights, and for a file that is not there."""
        if not self.weights:
            return ""
        return self.weights_sha256 or content("" if self.weights == PRETRAINED else self.weights)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Name of a loss in models.losses, and its hyperparameters."""

    name: str = "gce"
    params: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("name", "num_classes"):
            if key in self.params:
                raise ConfigError(f"loss.params.{key}: a recipe cannot set it; leave it out")


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Learning of the loss's hyperparameters during training, from photos whose labels are trusted."""

    photos: str = ""  # a file of ids, or "val" for the validation photos as they are; "": off
    replay: str = ""  # metrics.jsonl of a training that learnt them: follows its schedule, without trusted photos
    lr: Annotated[float, Range(0, open_low=True)] = 0.05  # of Adam on the unbounded form of each hyperparameter
    every: Positive = 10  # training steps to one step of the hyperparameters
    batch_size: Annotated[int, Range(2)] = 64  # trusted photos
    ignore_length: bool = True  # of the trial step, because AdamW sets it itself; false: the published gradient
    head_only: bool = True  # the trial step moves the classifier alone; false: all that is trained

    def __post_init__(self) -> None:
        if self.photos and self.replay:
            raise ConfigError("meta.replay: follows a schedule, but meta.photos learns one; leave one of them empty")

    @property
    def file(self) -> str:
        """Hash of the file that `photos` or `replay` names; "" if there is no such file."""
        return content(self.photos or self.replay)


@dataclass(frozen=True, kw_only=True)
class Train:
    """The training loop."""

    epochs: Positive = 24
    batch_size: Positive = 32
    optimizer: str = "adamw"  # "sgd" with momentum .9, or another name of timm.optim, such as "lamb"
    lr: Annotated[float, Range(0, open_low=True)] = 2e-3  # after the warm-up
    backbone_lr_scale: Share = 1.0  # 0 freezes the backbone: its features are computed once, and only the head learns
    weight_decay: Annotated[float, Range(0)] = 0.05
    warmup_epochs: Annotated[float, Range(0)] = 1.0  # of the learning rate, linear
    start_size: Annotated[float, Range(0.25, 1)] = 1.0  # size of views in the first epoch, as a share of member.size
    # Learning rate after the warm-up. cosine: falls to 0; step: falls to a tenth after each of step_epochs.
    schedule: Literal["cosine", "step"] = "cosine"
    step_epochs: tuple[Annotated[float, Range(0, open_low=True)], ...] = (14.0, 20.0)
    sampling_power: Share = 1.0  # a class of n photos is drawn in proportion to n^q: 1 as delivered, 0 class-balanced
    progressive: bool = False  # moves from sampling_power to class-balanced over the epochs
    balanced_epochs: Annotated[int, Range(0)] = 0  # last epochs with class-balanced sampling
    best_epochs: Annotated[int, Range(0)] = 0  # last epochs on the best-scored photos of each class
    best_photos: Positive = 30  # photos of a class in best_epochs
    epoch_length: Annotated[int, Range(0)] = 0  # draws; 0: as many as photos
    class_weights: Literal["", "inverse", "effective"] = ""  # weights of the classes in the loss
    class_beta: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.999  # beta of effective numbers
    photo_weights: str = ""  # a file of ids and weights; photos not in it have the weight 1
    har: Annotated[float, Range(0)] = 0.0  # heteroskedastic adaptive regularisation
    l1: Annotated[float, Range(0)] = 0.0  # penalty on the absolute values of matrices and convolutions
    ema: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # decay per step of the average of weights; 0: off
    soup_epochs: Annotated[int, Range(0)] = 0  # last epochs whose weights are averaged; 0: off
    state: str = ""  # a samples.parquet of an earlier training, whose loss state is carried over
    head_rows: Annotated[int, Range(0)] = 0  # rows of a batch that classifier and loss get at a time; 0: all
    micro_batch: Annotated[int, Range(0)] = (
        0  # photos that pass through the network at a time; 0: a process's whole batch
    )
    compile: bool = False  # torch.compile the network, which takes minutes before the first step
    workers: Annotated[int, Range(0)] = 1  # processes that share one training; 0: one per GPU
    shard: bool = False  # spread parameters and the optimiser's state over the workers, for what one GPU cannot hold
    threads: Annotated[int, Range(0)] = 1  # CPU threads of one training process; 0: torch decides
    loaders: Annotated[int, Range(0)] = 0  # processes that decode photos for one process; 0: as the cores allow
    decode: Literal["cpu", "device"] = "cpu"  # where plain JPEGs become pixels
    checkpoint_minutes: Annotated[float, Range(0)] = 10.0  # between checkpoints within an epoch; 0: after every step

    def __post_init__(self) -> None:
        if 0 < self.epoch_length < self.batch_size:
            raise ConfigError(
                f"train.epoch_length: {self.epoch_length} draws do not fill a batch of "
                f"train.batch_size = {self.batch_size}; raise it, or set 0 for as many draws as photos"
            )
        for name in ("balanced_epochs", "best_epochs", "soup_epochs"):
            if getattr(self, name) > self.epochs:
                raise ConfigError(
                    f"train.{name}: {getattr(self, name)} is above train.epochs = {self.epochs}; "
                    "lower it, or train longer"
                )
        late = [epoch for epoch in self.step_epochs if epoch >= self.epochs]
        if self.schedule == "step" and late:
            raise ConfigError(
                f"train.step_epochs: {late[0]:g} is not within train.epochs = {self.epochs}; lower it, or train longer"
            )
        if self.ema and self.soup_epochs:
            raise ConfigError("train.soup_epochs: averages weights, and so does train.ema; set one of them to 0")
        if self.har and self.head_rows:
            raise ConfigError("train.har: needs all logits of a batch at a time; set train.head_rows=0, or har=0")
        others = {
            "l1": self.l1,
            "ema": self.ema,
            "soup_epochs": self.soup_epochs,
            "backbone_lr_scale": not self.backbone_lr_scale,
        }
        for key in (key for key, is_set in others.items() if is_set and self.shard):
            raise ConfigError(
                f"train.shard: true does not work with train.{key}={getattr(self, key):g}, which needs whole parameters; set "
                "shard=false"
            )
        if self.start_size < 1 and self.backbone_lr_scale == 0:
            raise ConfigError(
                f"train.start_size: {self.start_size}, but a frozen backbone (train.backbone_lr_scale=0) sees each "
                "photo once, at full size; set 1"
            )

    @property
    def averages(self) -> bool:
        """True if an average of weights is kept."""
        return self.ema > 0 or self.soup_epochs > 0

    @property
    def decisive(self) -> Train:
        """These settings with the keys reset that do not change the result."""
        return dataclasses.replace(self, workers=1, shard=False, loaders=0, checkpoint_minutes=10.0)

    def light(self, epochs: int) -> Train:
        """Settings of the networks that score photos for cleaning: fewer epochs, with all photos until the last.

        The learning rate falls, and weights are averaged, at the same shares of the training.
        """
        share = epochs / self.epochs
        step_epochs = (
            tuple(epoch * share for epoch in self.step_epochs) if self.schedule == "step" else self.step_epochs
        )
        return dataclasses.replace(self, epochs=epochs, balanced_epochs=0, best_epochs=0, step_epochs=step_epochs,
                                   soup_epochs=math.ceil(self.soup_epochs * share))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distil:
    """The student: one small network that learns the answers of the ensemble, its teacher, and is served instead of it."""

    backbone: str = ""  # any timm name; "": no student
    size: Annotated[int, Range(16, 1024)] = 96  # these seven as those of a member
    seed: Annotated[int, Range(0)] = 0
    weights: str = ""
    weights_sha256: str = ""
    args: dict = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    epochs: Positive = 40
    batch_size: Positive = 64
    lr: Annotated[float, Range(0, open_low=True)] = 1e-3  # of the whole network, after the warm-up
    temperature: Annotated[float, Range(0, open_low=True)] = 1.0  # of the answers of both while the student learns
    crops: Annotated[int, Range(1, 10)] = 2  # 1, 2, 5 or 10 of a photo, over which the teacher averages
    fall: Share = 0.02  # mean-class accuracy that the student may lose

    def __post_init__(self) -> None:
        if self.crops not in LEVELS:
            raise ConfigError(f"distil.crops: {self.crops} is not one of 1, 2, 5, 10; set one of them")
        try:
            _ = self.member
        except ConfigError as error:
            raise ConfigError(str(error).replace("members.", "distil.", 1)) from None

    @property
    def member(self) -> Member:
        """The student as a member with a linear classifier."""
        own = {
            name: getattr(self, name) for name in ("size", "seed", "weights", "weights_sha256", "args", "mean", "std")
        }
        return Member(backbone=self.backbone, **own)

    def settings(self, train: Train) -> Train:
        """Settings of the student's training: those of [train], except for all that concerns labels and their classes."""
        return dataclasses.replace(
            train, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, backbone_lr_scale=1.0, schedule="cosine",
            sampling_power=1.0, progressive=False, balanced_epochs=0, best_epochs=0, class_weights="", photo_weights="",
            har=0.0, state="", soup_epochs=min(train.soup_epochs, self.epochs),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random views of a training photo; all ranges are symmetric about the unchanged photo."""

    zoom: Annotated[float, Range(0, 0.9)] = 0.3  # a view covers 1 - zoom to 1 of the side
    rotate_deg: Annotated[float, Range(0, 180)] = 8.0
    colour: Share = 0.3  # brightness, contrast and saturation each vary by this share
    hue_deg: Annotated[float, Range(0, 180)] = 0.0  # shift of the hue, either way
    flip: bool = True
    flip_vertical: bool = False
    blur: Share = 0.0  # probability of Gaussian blur
    erase: Share = 0.3  # probability of blank rectangles (coarse dropout)
    holes: Annotated[int, Range(1, 32)] = 1  # blank rectangles of such a view; together about as large as one
    mixup: Annotated[float, Range(0)] = 0.0  # alpha of Beta(alpha, alpha), the distribution of the shares; 0: off
    cutmix: Annotated[float, Range(0)] = 0.0  # likewise

    @property
    def mixes(self) -> bool:
        """True if a view shows two photos."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def of_features(self) -> Augment:
        """The augmentations that affect a frozen backbone: it sees whole photos and their mirror images, once."""
        return Augment(flip=self.flip, mixup=self.mixup)


def content(path: str) -> str:
    """Hash of a file; "" if there is no such file."""
    return sha256(Path(path)) if path and Path(path).is_file() else ""
