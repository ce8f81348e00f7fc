from selfemo.cli import run

run()
