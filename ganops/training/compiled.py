"""torch.compile of the networks (`run.compile`).

The main phases call the networks, which then run compiled; the regularisers call `forward`, which stays as it is:
differentiating a compiled network twice is refused by torch. Compiling a whole regulariser with its derivative works,
but torch 2.15 then gives zeros to parameters that get no gradient in eager mode, for which Adam would take a step; and
on a CPU it was slower (docs/numerics.md).
"""

from typing import Literal

from ganops.entry import say
from ganops.networks.families import AnyDiscriminator, AnyGenerator

CompileMode = Literal["none", "main"]


def compile_networks(G: AnyGenerator, D: AnyDiscriminator, mode: CompileMode, deterministic: bool) -> None:
    """Has torch compile what the phases Gmain and Dmain call, at their first calls; results change by rounding only.

    Args:
        G: its synthesis is compiled; the mapping is too small to gain.
        D: is compiled.
        mode: "none" does nothing.
        deterministic: the compiler does not choose kernels by timing them, so a resumed run gets the same ones.
    """
    if mode == "none":
        return
    say("train: torch compiles the networks in the first steps (run.compile: main); that takes minutes without a line")
    import torch._inductor.config  # only here: it takes two seconds

    torch._inductor.config.deterministic = deterministic
    G.synthesis.compile()
    D.compile()
