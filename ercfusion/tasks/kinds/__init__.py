"""The task kinds of the library, one file each: the name of the file is the name of the kind.

:data:`ercfusion.batch.kinds.KINDS` finds them; :class:`ercfusion.batch.kinds.TaskKind` is their contract.
"""
