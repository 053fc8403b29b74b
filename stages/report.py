"""report: what the other stages wrote -> results/report.html, one page for people that needs no network."""

from ganops.config_tools import TOOLS
from ganops.entry import Stage, run_stage, say
from ganops.files import format_bytes, write_bytes
from ganops.report.inputs import Paths, read_inputs
from ganops.report.page import make_page


def main(stage: Stage) -> None:
    """Numbers with their protocol, curves, pictures, params and provenance."""
    paths = Paths(
        result=stage.path("fid.json"),
        history=stage.path("history.csv"),
        summary=stage.path("metrics.json"),
        grids=stage.path("grids"),
        reals=stage.path("reals.png"),
        samples=stage.path("results/samples"),
        neighbours=stage.path("neighbours.png"),
        index=stage.path("index.json"),
    )
    # run says how, not what, and tools come after the pipeline: the report depends on neither.
    params = stage.params.model_dump(exclude={"run", *TOOLS})
    page = make_page(read_inputs(paths, params)).encode()
    write_bytes(stage.path("report.html"), page)
    say(f"report: {stage.path('report.html')} ({format_bytes(len(page))}); open it in a browser")


if __name__ == "__main__":
    run_stage("report", main)
