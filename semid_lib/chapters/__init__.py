"""Chapters as programs: run one, run all that are out of date, sweep parameters, log runs in MLflow."""
