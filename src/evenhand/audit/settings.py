"""What an audit is asked."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from evenhand.core.config import Settings


class AuditSettings(Settings):
    """Settings of ``evenhand audit``."""

    real: Path
    synthetic: Path
    out: Path
    judge: list[Path] | None = Field(None, description="classifier folders; default: trained on the real cohort's training split")
    encoder: list[Path] | None = Field(None, description="vision model or classifier folders, the first is primary; default: judges")
    target: str | None = Field(None, description="mix that presence is held against, 'sex=male:0.5,female:0.5'; default: the real cohort's")
    labels: Path | None = Field(None, description="CSV with a column image and one an attribute: some generated images read by hand")
    primary: list[str] = Field([], description="questions declared beforehand, such as 'quality:race'; all others are adjusted apart")
    fail_on: list[str] = Field([], description="rules such as 'presence:sex<=0.05'; the command exits with 3 where one is broken")
    intersect: int = Field(2, ge=1, description="largest number of attributes that are crossed")
    copies: bool = Field(True, description="look for copies of the real cohort's training images")
    utility: bool = Field(False, description="train classifiers on generated and on real images, test both on held-out real ones")
    force_judge: bool = Field(False, description="let a classifier judge that guided the model's alignment; the report says so")
    judge_arch: str = "resnet"
    judge_epochs: float = Field(8, gt=0)
    batch_size: int = Field(64, ge=1)
    repeats: int = Field(10, ge=1, description="subsamples cut from one random order, for size-matched distances")
    n_boot: int = Field(2000, ge=100, description="bootstrap samples of subjects")
    min_n: int = Field(20, ge=2, description="a group with fewer images is insufficient")
    seed: int = 0
