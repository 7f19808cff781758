"""tools/reproduce.py: runs that go on after a kill, rows with their keys, figures that hold, the toy's boundary."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

import reproduce
from helpers import make_parts
from kizu.errors import TrainingError
from kizu.run_folder import holds_run, load_file
from kizu.scoring_reference import score as reference_score
from kizu.settings import CHECKPOINT, SETTINGS, epoch_file
from reproduction import experiments, results, toy, worker
from reproduction.experiments import EXPERIMENTS, Experiment
from reproduction.runs import EVALUATION, SCORES, Planned, Run, check_folder, plan
from training_helpers import TINY, read_log, run_differences
