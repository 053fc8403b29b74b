"""Takes part, with this machine's GPUs, in every stage that the first node runs: `python -m stages.node`.

For run.nodes > 1: on the first node `dvc repro`, on each other one this, in the same (shared) repository.
"""

import sys
from pathlib import Path

from ganops.config import load_params
from ganops.entry import load_stage, say
from ganops.errors import GanopsError, ParamsError, RunError
from ganops.launch import await_meeting, launch, print_error, ranks_per_node


def main() -> None:
    """Joins stage after stage, until Ctrl-C or SIGTERM."""
    params = load_params(Path("params.yaml"))
    if params.run.nodes < 2:
        raise ParamsError(
            f"run.nodes={params.run.nodes}: there is no other node to join. Set run.nodes and run.rendezvous."
        )
    say(f"node: waits for stages of {params.run.rendezvous}")
    while True:
        meeting = await_meeting(params)
        stage = load_stage(meeting.stage)  # reads params.yaml again: it may have been edited for this stage
        count = ranks_per_node(stage.params, meeting.most * stage.params.run.nodes)
        say(f"node: stage {stage.name}, {count} ranks, as node {meeting.node}")
        try:
            late_signals = launch(stage.name, stage.params, count, meeting)
            say(f"node: stage {stage.name} has ended")
            if late_signals:
                raise KeyboardInterrupt
        except RunError as error:
            print_error(f"node: stage {stage.name}: {error}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("node: interrupted")
    except GanopsError as error:
        sys.exit(f"node: {error}")
