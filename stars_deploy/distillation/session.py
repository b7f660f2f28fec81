"""Everything a run consists of between two steps, and what one step does to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation import kd
from stars_deploy.distillation.pool import ImagePool
from stars_deploy.distillation.randomness import make_rng, module_init
from stars_deploy.distillation.schedule import Step
from stars_deploy.distillation.synthesis.base import Synthesizer
from stars_deploy.distillation.synthesis.cmi import Cmi
from stars_deploy.distillation.synthesis.deepinversion import DeepInversion
from stars_deploy.distillation.synthesis.judge import ImageJudge
from stars_deploy.distillation.synthesis.nayer import Nayer
from stars_deploy.distillation.warm_start import analytic_start, calibrate, twins
from stars_deploy.errors import TrainingDiverged
from stars_deploy.networks.base import Network
from stars_deploy.networks.families import build_student
from stars_deploy.networks.images import augment, to_input

KD_LOG_EVERY = 20  # steps between two lines about the student
Metrics = dict[str, Any]
METHODS: dict[str, Callable[[Recipe, ImageJudge], Synthesizer]] = {
    "deepinversion": DeepInversion,
    "cmi": Cmi,
    "nayer": Nayer,
}


class Session:
    """Teacher, student, pool, synthesis and random generators of one run.

    `advance` does one step of the schedule. Between steps `state_dict` holds all that later steps
    depend on, so that a run continued from it gives the same numbers.
    """

    def __init__(self, recipe: Recipe, teacher: Network) -> None:
        self.recipe = recipe
        self.device = next(teacher.parameters()).device
        self.teacher = teacher.eval().requires_grad_(False)
        with module_init(make_rng(recipe.run.seed, "student")):
            self.student = build_student(recipe).to(self.device)
        self.gains: list[Tensor] = []
        if recipe.warm_start.enabled:
            self.gains = analytic_start(twins(recipe, teacher, self.student))
        self.pool = ImagePool(
            recipe.data.shape, make_rng(recipe.run.seed, "pool"), recipe.pool.max_images
        )
        self.optimizer = kd.new_optimizer(self.student, recipe)
        self._augment_rng = make_rng(recipe.run.seed, "student augmentation")
        self._judge_rng = make_rng(recipe.run.seed, "synthesis augmentation")
        self._judge = ImageJudge(recipe, teacher, self.student, self._judge_rng)
        self.synthesizer: Synthesizer = METHODS[recipe.synthesis.method](recipe, self._judge)

    def advance(self, step: Step) -> Metrics:
        """Do one step; return what is to be logged about it, mostly nothing.

        Raises:
            TrainingDiverged: a loss is not finite.
        """
        if step.phase == "kd":
            return self._distil(step)
        if step.phase == "calibration":
            return self._calibrate()
        return self._synthesise(step)

    def _synthesise(self, step: Step) -> Metrics:
        self.student.eval().requires_grad_(False)
        if step.number == 0:
            self.pool.start_round()
            if self._judge.stars.takes_part(step.epoch):
                self._judge.stars.measure_units(self.pool.images)
        made = self.synthesizer.step(step.epoch, step.number)
        if not math.isfinite(made.loss):
            raise _diverged(step, made.loss, "synthesis.lr", self.recipe.synthesis.lr)
        if made.images is not None and made.labels is not None:
            self.pool.add(made.images, made.labels)
        return made.metrics | ({"pool": len(self.pool)} if made.metrics else {})

    def _calibrate(self) -> Metrics:
        pair = twins(self.recipe, self.teacher, self.student)
        images = self.pool.draw(min(self.recipe.warm_start.calibration_images, len(self.pool)))
        self.gains, errors = calibrate(pair, images, self.recipe)
        # Momentum of an earlier start would push the new one.
        self.optimizer = kd.new_optimizer(self.student, self.recipe)
        return {f"fit_error_{index + 1}": error for index, error in enumerate(errors)}

    def _distil(self, step: Step) -> Metrics:
        recipe, config = self.recipe, self.recipe.kd
        epoch, epochs = step.epoch - recipe.run.warmup, recipe.run.epochs - recipe.run.warmup
        for group in self.optimizer.param_groups:
            group["lr"] = kd.learning_rate(config, epoch, step.number, epochs)
        self.student.train().requires_grad_(True)
        pixels = self.pool.draw(config.batch_size, recipe.pool.newest_fraction)
        images = augment(pixels, recipe.data.crop_padding, recipe.data.flip, self._augment_rng)
        x = to_input(images, recipe.data, self.device)
        with torch.no_grad():
            goal = self.teacher.taps(x)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            taps = self.student.taps(x)
        loss = response = kd.kd_loss(taps.logits.float(), goal.logits, config.tau)
        if config.feature > 0 and self.gains:
            fires = self.student.neurons
            match = kd.feature_loss(
                [taps.activations[i] for i in fires],
                [goal.activations[i] for i in fires],
                [self.gains[i] for i in fires],
            )
            loss = response + config.feature * match
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged(step, value, "kd.lr", config.lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if step.number % KD_LOG_EVERY and step.number != config.steps - 1:
            return {}
        agree = taps.logits.detach().argmax(1) == goal.logits.argmax(1)
        return {
            "loss": value,
            "kd": float(response.detach()),
            "agreement": float(agree.float().mean()),
            "lr": self.optimizer.param_groups[0]["lr"],
            "rates": [
                float(taps.activations[i].detach().float().mean()) for i in self.student.neurons
            ],
        }

    def finite(self) -> bool:
        """Return whether all weights and statistics of the student are finite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.student.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers, strings, lists and dicts only."""
        return {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gains": self.gains,
            "pool": self.pool.state_dict(),
            "synthesizer": self.synthesizer.state_dict(),
            "augment_rng": self._augment_rng.get_state(),
            "judge_rng": self._judge_rng.get_state(),
            "stars": self._judge.stars.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.student.load_state_dict(state["student"])
        self.optimizer = kd.new_optimizer(self.student, self.recipe)
        self.optimizer.load_state_dict(state["optimizer"])
        self.gains = [gain.to(self.device) for gain in state["gains"]]
        self.pool.load_state_dict(state["pool"])
        self.synthesizer.load_state_dict(state["synthesizer"])
        self._augment_rng.set_state(state["augment_rng"])
        self._judge_rng.set_state(state["judge_rng"])
        self._judge.stars.load_state_dict(state["stars"])


def _diverged(step: Step, loss: float, key: str, value: float) -> TrainingDiverged:
    return TrainingDiverged(
        f"{step.phase} step {step.number} of epoch {step.epoch}: the loss is {loss}, expected a "
        f"finite number; lower {key} (now {value}). The last good checkpoint is kept"
    )
