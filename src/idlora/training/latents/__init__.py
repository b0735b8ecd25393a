# SPDX-License-Identifier: Apache-2.0
"""Training pairs through the codecs, once: shards of latents and text features, and what makes and reads them."""
