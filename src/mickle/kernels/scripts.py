"""Scripts that set no spaces between words: their characters, as classes of a regular expression.

How many letters make a word there, in the mean of running text: two in Chinese and Japanese, about four in the others.
"""

IDEOGRAPHS = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3040-\u312f\u31a0-\u31ff\uff66-\uff9f"  # and Bopomofo
ALPHABETS = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Myanmar, Khmer
UNSPACED = IDEOGRAPHS + KANA + ALPHABETS
LETTERS_A_WORD = {IDEOGRAPHS + KANA: 2, ALPHABETS: 4}
