# SPDX-License-Identifier: Apache-2.0
"""`idlora pairs`: from a folder of ordinary videos to training pairs, stage by stage, each a table."""
