"""Words for traits of character, which names of persona clusters are made of.

Adjectives of temperament and manner in common English, after the lists of Anderson 1968 (likableness of
personality-trait words) and Goldberg 1992 (markers of the Big Five), with words for tempers and manners of
speech [ours].
"""

from __future__ import annotations

TRAITS = frozenset(
    """
abrasive abrupt absent-minded abusive accommodating accurate adaptable adventurous affectionate
aggressive agreeable alert aloof ambitious amiable amusing analytical animated annoying antagonistic
anxious apathetic apologetic argumentative arrogant artistic ashamed assertive attentive
authoritative awkward bashful benevolent big-hearted bitter blunt boastful boisterous bold bored
boring bossy brave bright broad-minded brusque calculating calm candid carefree careful careless
caring cautious changeable charming chatty cheerful childish childlike choosy clear-headed clever
clownish clumsy cold comforting compassionate compliant composed compulsive conceited condescending
confident conforming conscientious conservative considerate consistent controlling cooperative
courageous courteous courtly cowardly crafty cranky creative crude cruel cultured cunning curious
curt cynical daring deadpan deceitful decent decisive dedicated defensive defiant deliberate
demanding dependable dependent depressed detached determined devoted dignified diligent diplomatic
direct disciplined discontented discourteous discreet dishonest disobedient disorganized
dissatisfied distant distractible distrustful docile dogmatic dominant dominating dramatic dreamy
driven dutiful eager earnest easygoing eccentric efficient egotistical eloquent emphatic energetic
enterprising entertaining enthusiastic envious erratic ethical exacting excitable expressive
extravagant extraverted extroverted faithful fashionable fault-finding fearful fearless fickle fiery
finicky flamboyant flexible flighty flippant flirtatious fluent foolish forceful forgetful forgiving
formal forthright frank fretful friendly frivolous funny fussy generous gentle genuine giggly gloomy
good-humored good-natured good-tempered gossipy graceful gracious grateful greedy gregarious grouchy
gruff grumpy guarded guilt-ridden gullible hard-hearted hardworking harsh hasty haughty headstrong
heartless hearty helpful heroic hesitant high-spirited high-strung honest honorable hopeful hostile
hot-headed hot-tempered humble humorless humorous hypocritical idealistic imaginative immature
impatient impersonal impolite impractical impressionable impulsive inattentive incompetent
inconsiderate inconsistent indecisive independent indifferent indignant individualistic indulgent
industrious inexperienced inhibited innocent inoffensive inquisitive insecure insensitive insightful
insincere insolent insulting intellectual intelligent intense intolerant introspective introverted
inventive irrational irresponsible irreverent irritable irritating jealous jolly jovial joyful jumpy
kind kind-hearted kindly laid-back lazy lenient level-headed light-hearted likable listless literal
literal-minded lively logical lonely long-winded loud loud-mouthed lovable loving loyal malicious
mannerly materialistic maternal mean-spirited meddlesome mediocre meditative meek melancholic
melancholy mellow merciful messy methodical meticulous mild mischievous miserable miserly
mistrustful moderate modest monotonous moody morbid motherly mournful nagging naive narrow-minded
nasty neat neglectful nervous neurotic noisy nonchalant nosey nosy nurturing obedient obnoxious
observant obsessive obstinate offensive old-fashioned open-minded opinionated optimistic orderly
organized outgoing outspoken over-cautious overbearing overconfident overcritical oversensitive
painstaking passionate passive passive-aggressive paternal patient peaceful peculiar peevish pensive
perceptive perfectionist perfectionistic persevering persistent persuasive petty philosophical phony
picky playful pleasant poised polite pompous positive possessive practical pragmatic precise
prejudiced preoccupied pretentious prickly principled private problem-solving progressive prompt
protective proud prudent prying punctual purposeful pushy quarrelsome quick-tempered quick-witted
quiet rambling rash rational realistic rebellious reckless refined reflective relaxed reliable
remorseful resentful reserved resigned resilient resourceful respectful responsible restless
restrained reticent romantic rough rowdy rude ruthless sad sad-eyed sarcastic sardonic
scatterbrained sceptical scheming scolding secretive self-absorbed self-assured self-aware
self-centered self-confident self-conscious self-controlled self-critical self-deprecating
self-disciplined self-effacing self-pitying self-possessed self-reliant self-righteous
self-satisfied selfish selfless sensible sensitive sentimental serene serious sharp sharp-tongued
sharp-witted short-tempered shrewd shy silent silly sincere skeptical skillful slick sloppy slow sly
smart smug snobbish sober sociable soft soft-hearted soft-spoken solemn solitary sophisticated
spirited spiteful spontaneous squeamish steady stern stiff stingy stoic stolid stormy strict
strong-minded strong-willed stubborn studious stylish suave submissive subtle sulky sullen
superficial superstitious supportive surly suspicious sweet sympathetic systematic tactful tactless
talented talkative teasing temperamental tempestuous tenacious tender tense terse theatrical
thorough thoughtful thoughtless tidy timid tireless tolerant touchy tough tranquil trustful trusting
trustworthy truthful unassuming uncertain uncompromising undecided understanding unemotional
unenthusiastic unethical unfair unflappable unforgiving unfriendly ungracious unhappy unimaginative
uninhibited unkind unpredictable unpretentious unreliable unruly unselfish unsociable unstable
unsympathetic untidy upbeat uptight urbane vague vain vengeful verbose versatile vibrant vigorous
vindictive vivacious volatile vulnerable warm warm-hearted wary wasteful watchful weary
well-mannered well-meaning well-read whimsical whiny wild willful wise wistful withdrawn witty
worried worrisome wry yielding youthful zany zealous
    """.split()  # noqa: SIM905
)
