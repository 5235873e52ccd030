# SPDX-License-Identifier: Apache-2.0
"""BLIP as a captioner for full-scale scoring: the network comes from transformers; we draw the tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from recipes_lib.errors import DataError
from recipes_lib.models.captioner import check_request
from recipes_lib.models.sampling import Sampling, nucleus


class HFBlipCaptioner:
    """Captions images by a BLIP of transformers, loaded by its folder or its name on the hub.

    It is a ``models.captioner.Captioner``. Images are resized and normalised by the checkpoint's own processor. The
    paper's captioner was trained on 14 million pairs only; the public ``Salesforce/blip-image-captioning-base`` was
    also fine-tuned on COCO captions, at 384 pixels.

    Source: Li et al., BLIP, arXiv 2201.12086; prompt and sampling of Sieve's official code, arXiv 2310.02110.
    Differs: the official code draws from one global generator, and transformers' default limit to the 50 likeliest
        tokens applies to it silently. Here the captions of an image depend only on its seed, and only the nucleus
        limits the tokens.
    Raises: ``DataError`` if transformers or the weights are missing; ``ValueError`` for captions longer than BLIP's
        position table.
    """

    def __init__(
        self,
        path_or_name: str,
        prompt: str = "a picture of ",
        *,
        sampling: Sampling | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sampling, self.device = sampling or Sampling(), torch.device(device)
        self.processor, self.model = _loaded(path_or_name)
        self.model.to(self.device).eval().requires_grad_(False)
        text = self.model.config.text_config
        ids = self.processor.tokenizer(prompt).input_ids
        self.prompt = torch.tensor([text.bos_token_id, *ids[1:-1]])  # [DEC] first, no [SEP]: BLIP was trained so
        longest = len(self.prompt) + self.sampling.max_length
        if longest > text.max_position_embeddings:
            raise ValueError(
                f"max_length = {self.sampling.max_length} and a prompt of {len(self.prompt)} tokens exceed "
                f"the {text.max_position_embeddings} positions of {path_or_name}."
            )

    @torch.no_grad()
    def generate(self, images: Tensor | Sequence[Image.Image], count: int, seeds: Tensor) -> list[list[str]]:
        """Draws ``count`` captions per image, without the prompt. An image's captions depend only on its seed.

        Shapes: ``images`` uint8 [B, 3, H, W] or B PIL images, ``seeds`` int64 [B] -> B lists of ``count`` texts.
        Raises: ``ValueError`` if ``count`` is below 1 or there is not one seed per image.
        """
        check_request(len(images), count, seeds)
        if len(images) == 0:
            return []
        pictures = list(images) if isinstance(images, Tensor) else [image.convert("RGB") for image in images]
        pixels = self.processor.image_processor(images=pictures, return_tensors="pt").pixel_values.to(self.device)
        seen = self.model.vision_model(pixel_values=pixels).last_hidden_state  # [B, M, D]: computed once per image
        tokens = self._draw(seen.repeat_interleave(count, dim=0), self.sampling.draws(seeds, count))  # [B * r, T]
        texts = self.processor.tokenizer.batch_decode(tokens[:, len(self.prompt) :], skip_special_tokens=True)
        return [[text.strip() for text in texts[first : first + count]] for first in range(0, len(texts), count)]

    def _draw(self, seen: Tensor, draws: Tensor) -> Tensor:
        """The prompt's and the drawn tokens, for r captions per image whose encoder outputs are ``seen``.

        Shapes: [B * r, M, D], [B * r, max_length] -> int64 [B * r, at most prompt + max_length].
        """
        text, sampling, length = self.model.config.text_config, self.sampling, len(self.prompt)
        draws = draws.to(self.device)

        def chosen(ids: Tensor, logits: Tensor) -> Tensor:
            """Masks all tokens but the drawn one, so that transformers' greedy search takes it."""
            token = nucleus(logits, sampling.top_p, draws[:, ids.shape[1] - length])
            return torch.full_like(logits, -torch.inf).scatter(1, token[:, None], 0.0)

        return self.model.text_decoder.generate(
            input_ids=self.prompt.to(self.device).repeat(
                len(seen), 1
            ),  # a fresh copy: BLIP's own generate writes into it
            attention_mask=torch.ones(len(seen), length, dtype=torch.int64, device=self.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64, device=self.device),
            logits_processor=[chosen],  # runs after the repetition penalty and the minimum length
            do_sample=False,
            num_beams=1,
            repetition_penalty=sampling.repetition_penalty,
            min_length=length + sampling.min_length,
            max_length=length + sampling.max_length,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
        )


def _loaded(path_or_name: str) -> tuple[Any, Any]:
    """Loads the processor and the network; raises ``DataError`` if either cannot be loaded."""
    try:
        from transformers import BlipForConditionalGeneration, BlipProcessor
    except ImportError:
        raise DataError("BLIP needs the package transformers: pip install 'ssl-cookbook[text]'") from None
    try:
        processor = BlipProcessor.from_pretrained(path_or_name)
        model, found = BlipForConditionalGeneration.from_pretrained(path_or_name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"No BLIP could be loaded from {path_or_name!r} ({str(error).partition(chr(10))[0]}). Name a folder with "
            "config, model.safetensors, tokenizer and preprocessor_config.json, or a name that can be downloaded."
        ) from None
    lacking = sorted(key for key in found["missing_keys"] if ".encoder." in key)
    if lacking:  # transformers would fill them with random numbers
        raise DataError(f"The weights in {path_or_name!r} lack {len(lacking)} of BLIP's, {lacking[0]} the first.")
    return processor, model
