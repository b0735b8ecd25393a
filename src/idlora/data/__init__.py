# SPDX-License-Identifier: Apache-2.0
"""Media in and out, prompts, and the procedural world that the miniature learns from."""
