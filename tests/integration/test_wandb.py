"""fairchem's Weights & Biases logger, without network."""

from __future__ import annotations

import pytest
import wandb


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def test_wandb_logs_every_loss_term(run, distilled, tmp_path, offline):
    run({**distilled, "logger": "wandb"})
    logged = dict(wandb.run.summary)
    wandb.finish()
    terms = [key for term in distilled["loss_functions"] for key in term]
    assert len(terms) == 4 and {"train/loss", *(f"train/loss_{key}" for key in terms)} < logged.keys()
    (kept,) = tmp_path.glob("logs/wandb/run/wandb/offline-run-*/run-run.wandb")
    assert kept.stat().st_size > 0
