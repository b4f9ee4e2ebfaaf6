"""A module that sets at its import what it relies on later, as NumPy filters warnings and Django sets the time zone."""

import os
import sys
import time
import warnings

os.environ["TZ"] = "Asia/Tokyo"
time.tzset()
sys.setrecursionlimit(5000)
warnings.filterwarnings("ignore", message="opinionated")
