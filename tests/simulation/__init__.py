"""Whole clusters on one clock: real members on disks and a network that a seed has fail, judged by what clients saw.

``python -m tests.simulation 17`` runs seed 17 and shows what went wrong, if anything did.
"""
