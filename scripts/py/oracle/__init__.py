"""Judges a conversion by what Python reads at both ends.

    values       unpickles records without importing their classes, and compares
    expected     what the source holds, by the real FileStorage
    neutral      the same for a source of Python 2, from the dump beside it
    destination  what the destination holds, by SQL and by the real zodb-pgjsonb
    blobs        the files of blobs, and their comparison
    compare      the comparison
    exercise     commits, undoes and packs in the destination
"""
