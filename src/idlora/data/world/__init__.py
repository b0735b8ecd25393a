# SPDX-License-Identifier: Apache-2.0
"""The procedural world of talking heads: its look, its sound and its captions, all with known truth."""
