# SPDX-License-Identifier: Apache-2.0
"""`idlora reproduce`: every claim of the paper as a row, measured on the miniature or said to be out of reach."""
