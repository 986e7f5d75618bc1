"""BoRA from Python: a frame in, a run out.

run = bora.fit(frame, task="speaker", text="speech", model="opt_mini", tau=100, max_epochs=4)
run                                     # in a notebook, a row for each task
run.generate("Mr. Speaker, ", tasks=["Ann", "Bo"], mean=True)
run = bora.load("outputs/2026-01-01/12-00-00")
sweep = bora.sweep(frame, tau=[0, 10, 100, float("inf")], seeds=[0, 1])
"""

from bora.api.runs import Run as Run
from bora.api.sweeps import Sweep as Sweep
from bora.api.sweeps import load as load
from bora.api.training import fit as fit
from bora.api.training import sweep as sweep
