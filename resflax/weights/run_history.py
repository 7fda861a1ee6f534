"""How far a run has come, and which parameters its networks began from, by its checkpoints."""

from typing import Any, NamedTuple

from resflax.data.phases import make_phases


class InitialParameters(NamedTuple):
    """Parameters that training began from; equal for networks that began from the same ones.

    Attributes:
      pretrained: name of the pretrained weights; "" without.
      seed: seed of the initialization; None for pretrained weights.
      member: index of the member of an efficient ensemble, whose members are initialized
        separately; None for others.
    """

    pretrained: str = ""
    seed: int | None = None
    member: int | None = None

    def __str__(self) -> str:
        member = "" if self.member is None else f", member {self.member}"
        return f"seed {self.seed}{member}"


class RunHistory(NamedTuple):
    """The training of a network of a run.

    Attributes:
      step: step of its checkpoint.
      last_step: step of the latest checkpoint of the run.
      total_steps: steps that the run's config asks for; None if that is not recorded.
      initial: what it began from; None if that is not recorded.
    """

    step: int
    last_step: int
    total_steps: int | None
    initial: InitialParameters | None

    @property
    def is_unfinished(self) -> bool:
        """Whether the run has not trained to its end yet."""
        return self.total_steps is not None and self.last_step < self.total_steps

    def __str__(self) -> str:
        """Returns the step, and how far an unfinished run has come."""
        text = f"step {self.step}"
        if not self.is_unfinished:
            return text
        progress = f"step {self.last_step} of {self.total_steps}"
        return f"{text} (unfinished: {progress})"


def total_steps(metadata: dict[str, Any]) -> int | None:
    """Returns the number of steps that the config in a checkpoint's metadata asks for."""
    try:
        config, examples = metadata["config"], metadata["data"]["splits"]["train"]["examples"]
        steps = make_phases(
            config.get("data", {}).get("size_schedule", ()),
            epochs=config["epochs"],
            examples=examples,
            batch_size=config["batch_size"],
        ).steps
        return min(steps, config.get("max_steps", 0) or steps)
    except (KeyError, TypeError):  # of an earlier version, or a dataset without a fingerprint
        return None


def initial_parameters(
    config: dict[str, Any], seeds: list[int] | None, member: int | None
) -> InitialParameters | None:
    """Returns what a network began from; None if its config does not say.

    Args:
      config: the config of the run.
      seeds: seeds of the members of `config.ensemble`; None for a run of one network.
      member: index of the network; None for a run of one network.
    """
    if config.get("pretrained"):
        return InitialParameters(pretrained=str(config["pretrained"]))
    if "seed" not in config:
        return None
    if member is None:
        return InitialParameters(seed=config["seed"])
    if seeds is None:
        return InitialParameters(seed=config["seed"], member=member)
    shares = config.get("ensemble", {}).get("share_init", False)
    return InitialParameters(seed=seeds[0 if shares else member])
