"""The tasks of the demo checkpoint: generators of questions with their thoughts and answers, and the judge of
answers.
"""
