"""A provider to rehearse against: an OpenAI-compatible server that can play every vendor and fail on demand.

Owns: everything under batch.simulator. Only the command line and tests import it; it imports
nothing of the project but the clock, so that it stays an independent witness of what was sent.
"""

from batch.simulator.config import Fault, Latency, Limit, SimulatorConfig
from batch.simulator.server import Simulator, start_simulator

__all__ = ["Fault", "Latency", "Limit", "Simulator", "SimulatorConfig", "start_simulator"]
