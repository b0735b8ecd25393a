# SPDX-License-Identifier: Apache-2.0
"""`idlora evaluate`: clips of any systems, judged, compared and reported; `bench` does the same for clips in memory."""
