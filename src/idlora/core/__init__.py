# SPDX-License-Identifier: Apache-2.0
"""The mathematics of the method: torch only, no files, no networks."""
