"""A small run in a process of its own: the real loop and checkpoints around a tiny model.

Arguments: WORKDIR, then optionally --wait, which stops before step 6 with the line READY, to be
killed. A run that was killed continues.
"""

import sys
import time

import jax

from helpers.tiny_training import BATCH, Batches, make_experiment, make_run
from jaxseg import checkpoint, precision
from jaxseg.replication import replicate
from jaxseg.training import loop
from jaxseg.training.logging import TrainLogger
from jaxseg.training.state import TrainState

STEPS = 6


def main(workdir, wait):
    experiment = make_experiment(steps=STEPS, log_every=10, eval_every=6, checkpoint_every=3)
    state, step = make_run(experiment, 1)
    with checkpoint.open_manager(workdir) as manager:
        found = checkpoint.restore(manager, state.variables, state.optimizer_items)
        if found:
            state = replicate(TrainState.from_items(*found[:2]), jax.devices()[:1])
        batches = Batches(1)
        batches.position = int(state.step)
        logger = TrainLogger(workdir, steps=STEPS, batch_size=BATCH, enabled=False)

        def slow(state, batch):
            if wait and batches.position == STEPS - 1:
                manager.wait_until_finished()
                print("READY", flush=True)
                time.sleep(60)
            return step(state, batch)

        run = loop.Run(
            experiment,
            manager,
            slow,
            precision.make_policy("float32"),
            logger,
            lambda done, variables: {"mIoU": 0.5},
        )
        loop.run_steps(run, state, batches)
        checkpoint.write_best(manager)


if __name__ == "__main__":
    main(sys.argv[1], "--wait" in sys.argv)
