"""timm's `validate.py` for one model folder and one folder of images, without its options.

timm's package does not contain the script. This does what the script does by default on a CPU or a
GPU: `create_dataset`, `create_loader` with the model's own preprocessing and the prefetcher, one
forward pass to warm up, then loss and accuracy of every batch. Prints one JSON object.

    python -m benchmarks.peers.timm_validate MODEL_FOLDER IMAGE_FOLDER BATCH WORKERS [channels_last]
"""

import json
import sys
import time
from typing import Any


def validate(model_folder: str, images: str, batch: int, workers: int, layout: str) -> Any:
    """Returns accuracy, loss, number of examples, and examples per second after two batches."""
    import timm
    import torch
    from timm.data.config import resolve_data_config
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader
    from timm.utils.metrics import accuracy

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True).to(device).eval()
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = model.to(memory_format=memory_format)
    config = resolve_data_config({}, model=model)
    loader = create_loader(
        create_dataset("", root=images),
        input_size=config["input_size"],
        batch_size=batch,
        use_prefetcher=True,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=workers,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=device,
    )
    criterion = torch.nn.CrossEntropyLoss().to(device)
    correct, examples, loss = 0.0, 0, 0.0
    with torch.inference_mode():
        warm_up = torch.randn((batch, *config["input_size"])).to(device)
        model(warm_up.contiguous(memory_format=memory_format))
        ends = []
        for inputs, target in loader:
            output = model(inputs.contiguous(memory_format=memory_format))
            loss += criterion(output, target).item() * len(target)
            top1, _ = accuracy(output, target, topk=(1, 5))
            correct += top1.item() * len(target) / 100
            examples += len(target)
            ends.append(time.perf_counter())
    speed = (examples - 2 * batch) / (ends[-1] - ends[1])
    library = f"timm {timm.__version__}, torch {torch.__version__}"
    values = {"accuracy": correct / examples, "nll": loss / examples}
    return values | {"examples": examples, "examples_per_second": speed, "library": library}


def main(arguments: list[str]) -> None:
    """Validates and prints the result."""
    model, images, batch, workers, *layout = arguments
    print(json.dumps(validate(model, images, int(batch), int(workers), "".join(layout))))


if __name__ == "__main__":
    main(sys.argv[1:])
