"""The public benchmarks, one folder each: how its rows are read and asked, its own rule of judging, what it reports."""
