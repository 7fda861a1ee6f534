"""Trains a network, or resumes a run.

    resflax train --config=configs/digits.py --workdir=runs/digits --config.seed=1
    python train.py ...   # the same, in a checkout

Every key of the config can be set on the command line: `--config.model=cifar_resnet56`. Without
`--config`, the recipe for the digits is `configs/digits.py`; for other datasets it is chosen from
number, sizes and classes of the training images, and printed, or it is that of the run in the
workdir. Without a workdir, it is a new one under `runs/`, named after the recipe or the dataset.

The same command with the same workdir resumes from the last checkpoint; `--resume=never` starts a
new run in `WORKDIR-2`. SIGTERM and Ctrl-C stop a run after the current step and save it.

For several processes, run the same command in each: with `--distributed` where JAX detects the
others (SLURM, Open MPI, GKE, TPU pods), otherwise with
`--distributed --coordinator=HOST:PORT --num_processes=N --process_id=I`. Only process 0 writes
files and prints.
"""


def main(arguments: list[str]) -> None:
    """Trains a config from the command line."""
    if {"-h", "--help", "--helpfull"} & set(arguments):
        print(__doc__, flush=True)  # before the imports of the keys, which take a second
        from resflax.cli.config_help import describe_keys

        print(describe_keys())
        return
    train(arguments)


def train(arguments: list[str]) -> None:
    """Trains the config of a command line."""
    from resflax.cli.flags import parse  # a second of imports, which --help does without
    from resflax.run.signals import Interrupt, InterruptedRunError
    from resflax.runtime import enable_compilation_cache
    from resflax.train import check_config, fit
    from resflax.train.launch import default_workdir

    with Interrupt() as interrupt:
        command = parse(arguments)
        check_config(command.config)
        command.distributed.initialize()
        interrupt.forward = command.distributed.distributed
        enable_compilation_cache()
        workdir = command.workdir or default_workdir(command.name)
        fit(
            command.config,
            workdir,
            resume=command.resume,
            interrupt=interrupt,
            notes=command.notes,
        )
        if interrupt.received:
            raise InterruptedRunError(interrupt.received, "the run had already finished")
