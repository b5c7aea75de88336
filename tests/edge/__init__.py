"""Tests of the shared aiohttp edge."""
