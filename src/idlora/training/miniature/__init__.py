# SPDX-License-Identifier: Apache-2.0
"""The miniature's training: the same classes made small, trained on the world of talking heads, stage by stage."""
