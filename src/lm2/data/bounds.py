"""Bounds of numbers that users give. Each raises a ValueError that begins with the name of what is out of bounds."""


def at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}, but must be at least {least}")


def more_than_zero(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} is {value}, but must be more than 0")


def within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but must be from {low} to {high}")
