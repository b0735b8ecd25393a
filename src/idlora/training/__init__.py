# SPDX-License-Identifier: Apache-2.0
"""The one training step and the stages that call it."""
