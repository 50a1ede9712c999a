"""Distillation methods: one file each; importing this package registers all of them."""

from __future__ import annotations

import importlib
import pkgutil

from raydd.methods.method import METHODS, Method, Problem, register_method

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg and _module.name != "method":
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["METHODS", "Method", "Problem", "register_method"]
