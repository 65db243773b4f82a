"""Loop nests as data: the IR both emitters share (`ir`), building it from prims (`build`), and its
reference executor (`reference`)."""
