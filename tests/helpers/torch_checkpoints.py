"""Tiny random Qwen2.5-VL checkpoints, written by transformers."""

import torch


def make_checkpoint(folder, *, tied=True, dtype="float32", shard="1GB"):
    """A random checkpoint saved by transformers itself, no tensor left at 0 or 1; returns its state dict as saved."""
    import transformers

    torch.manual_seed(0)
    ids = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)
    config = transformers.Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=96,
            rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
            tie_word_embeddings=tied,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=1,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=40,
            num_heads=2,
            out_hidden_size=32,
            fullatt_block_indexes=[1],
        ),
        tie_word_embeddings=tied,
        **ids,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder, max_shard_size=shard)
    return read_state(folder)


def read_state(folder):
    """Every stored tensor, read by the safetensors library."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def rename_to_newer(folder):
    """Rewrites the one file of a checkpoint with the tensor names of newer saves."""
    from safetensors.torch import save_file

    def rename(name):
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1)

    save_file({rename(k): v for k, v in read_state(folder).items()}, folder / "model.safetensors")


def rewrite(folder, change):
    """Applies `change` to the state dict of a one-file checkpoint."""
    from safetensors.torch import save_file

    state = read_state(folder)
    change(state)
    save_file(state, folder / "model.safetensors")
