"""Measurements, each in one run against what it is compared with: python -m tools.bench.NAME"""
