"""What a predicate can say about whole rectangles of indices, without looking at tokens.

The predicate, unmodified, is recorded once as an expression (`record`). Everything in it that depends on the
query alone, or on the key alone, is computed for all indices with the user's own torch functions: no approximation
there. Only where queries meet keys does each side become its smallest and largest value per block (`summaries`,
`intervals`), and comparisons are answered for whole tiles (`may`), after NOT has been pushed inwards (`normal_form`).

Why the answers are sound. `may(e)` is False for a tile only if `e` is False at each of its tokens: a comparison that
fails for the extreme values fails for all between; a disjunction is False when all its parts are; a conjunction when
one of them is, on the tokens that the others allow. Steps without a rule answer True, "it may". `must(e)` is
`not may(not e)`: one function, one argument, both answers.
"""
