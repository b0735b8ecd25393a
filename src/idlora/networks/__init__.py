# SPDX-License-Identifier: Apache-2.0
"""Networks and what wraps them; diffusers, transformers and peft are imported only from here up."""
