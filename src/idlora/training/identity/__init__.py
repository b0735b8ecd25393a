# SPDX-License-Identifier: Apache-2.0
"""Training of an identity adapter for any generation and for the miniature: resumable, on one device or many."""
