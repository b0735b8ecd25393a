# SPDX-License-Identifier: Apache-2.0
"""Judges of voice, words and lips, the statistics of their scores, and the protocol that the miniature is proven by."""
