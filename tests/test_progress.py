"""What people see of a run that is going on."""

from dials_mpi.runs.progress import Progress


def test_news_that_come_late_say_of_which_step_they_are(capsys):
    """An evaluation beside learning ends some steps behind what it evaluated."""
    progress = Progress(1000, n_agents=4)
    progress.reached(200, "return 1.0")
    progress.reached(300)
    progress.reached(250, "return 2.0")
    progress.reached(300, "return 3.0")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0].partition("] ")[2] for line in lines] == [
        "step 200 of 1,000 return 1.0",
        "step 300 of 1,000 return 2.0 at step 250",
        "step 300 of 1,000 return 3.0",
    ]
