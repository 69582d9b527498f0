"""Doge: dynamic mask attention, dense or with a cross domain mixture of experts."""
