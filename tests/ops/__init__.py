"""Operations: a row for each in cases/, checks that run over all rows, and checks of the checks."""
