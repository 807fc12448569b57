"""Importers of raw data sets: one file a layout."""

from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.sources.brats18 import Brats18
from evenhand.cohorts.sources.chexpert import Chexpert
from evenhand.cohorts.sources.fairgenmed import FairGenMed
from evenhand.cohorts.sources.ham10000 import Ham10000
from evenhand.cohorts.sources.nih_cxr import NihCxr
from evenhand.cohorts.sources.roco import Roco
from evenhand.cohorts.sources.table import Table

SOURCES: dict[str, type[Source]] = {source.name: source for source in (Brats18, Chexpert, FairGenMed, Ham10000, NihCxr, Roco, Table)}

__all__ = ["SOURCES", "ImportSettings", "Record", "Source"]
