# SPDX-License-Identifier: Apache-2.0
"""Who finds faces and reads lips: one interface, and a finder for each kind of picture."""
