"""The queue as it stands, and the command of its next open step: `python -m experiments.gpu`."""

from experiments.gpu.steps import next_step, table


def main() -> None:
    print(table())
    if (step := next_step()) is None:
        print("All steps with a script are done.")
    else:
        print(f"Next: {step.name}; its result goes to experiments/gpu/results/{step.results[0]}.json")
        print(f"    {step.command}")


if __name__ == "__main__":
    main()
